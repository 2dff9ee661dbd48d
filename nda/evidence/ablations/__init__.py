"""What a setting does."""
