"""From sources of text to arrays of token ids."""
