from tests.helpers.trees import case

__all__ = ["case"]
