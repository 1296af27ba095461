"""The command line: a command's file parses, calls one function and prints."""
