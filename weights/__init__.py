"""Any checkpoint of these models into any framework, without the framework."""

from triport.core.selection import Selection
from triport.weights.commands.load import licence, load_encoder, load_model, load_weights

__all__ = ["Selection", "licence", "load_encoder", "load_model", "load_weights"]
