"""The paper: attribution without the model."""
