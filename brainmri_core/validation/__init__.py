"""The checks of the data: findings, leaks, shortcuts, and the account of every file."""
