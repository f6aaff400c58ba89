"""What is done with a trained model: predict, embed, neighbours, reconstruct, attention, measure, export."""
