"""The subcommands of `station-export`, one module each: `add_arguments(parser)` and `run(arguments)`."""
