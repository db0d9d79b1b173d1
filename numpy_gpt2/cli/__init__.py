"""Code shared by the command lines: arguments, exit statuses, tables, the progress bar."""
