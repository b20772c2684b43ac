"""The subcommands of `station`, one a file: together with `station.__main__` the house's top floor."""
