"""The command line: `secateur VERB ...`. Nothing heavy is imported before the verb that needs it runs."""
