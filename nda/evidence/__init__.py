"""What retraining says, and what follows for a method."""
