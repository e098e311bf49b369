"""From arrays of token ids to vectors: the pretrained encoders."""
