"""What a defence did inside the model: each analysis is a function from models and rows to a result dataclass."""
