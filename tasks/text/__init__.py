"""What the tasks on rows of text share: options, rows, and folders of models of transformers."""
