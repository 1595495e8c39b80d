"""What commands do once their arguments are checked, one file a command of the same name: all that imports torch."""
