"""What surrounds the package: the machine and what is installed on it, the terminal, the files that commands write."""
