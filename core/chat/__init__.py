"""The renderer: messages to token ids and labels, one object for training, evaluation and serving."""
