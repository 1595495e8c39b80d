"""What a user types: one file a command, with its arguments, its calls and what it prints."""
