"""Slimmable widths: one elastic multi-task model whose encoder stages and decoders each run at several widths."""
