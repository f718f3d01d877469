"""The LlamaGen family: images token by token, line by line, over one codebook."""
