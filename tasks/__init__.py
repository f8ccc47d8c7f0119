"""What is learned: data, model, per-example loss, metrics, recipes, and the command line."""
