"""The command line: `megavideo VERB key=value ...`. Each verb imports its room only when it runs."""
