"""The verbs, one module each; `secateur.api` gathers them and `secateur.cli` types them. Nothing below imports them."""
