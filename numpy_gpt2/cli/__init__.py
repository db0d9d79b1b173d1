"""What the command lines share: arguments, exit statuses, tables, the progress bar."""
