"""Task quality against storage: tasks, methods and heads in one table."""
