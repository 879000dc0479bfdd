"""pdframe: a modular plugin framework for inverse problems."""
