"""What is done against forgetting, a family of strategies a file."""
