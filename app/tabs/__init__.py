"""One file a tab: its layout, its handlers, its wiring."""
