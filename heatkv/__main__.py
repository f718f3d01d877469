import sys

from heatkv.cli import main

sys.exit(main())
