"""The command line: `sparselens COMMAND`."""
