"""Several processes that train one model, each on a device of its own. docs/distributed.md says what a step is then."""
