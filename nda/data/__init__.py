"""Images, from any source to tensors, and which of them a model sees."""
