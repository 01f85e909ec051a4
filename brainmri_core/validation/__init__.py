"""What can be wrong with the data: findings, leaks, shortcuts, and the account of every file."""
