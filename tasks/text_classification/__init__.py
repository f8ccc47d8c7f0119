"""Classification of texts by models of transformers."""

from attent.tasks.text_classification.task import TextClassification

__all__ = ["TextClassification"]
