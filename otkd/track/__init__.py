"""Where records go and come from: MLflow in and out, and a JSON-lines file."""
