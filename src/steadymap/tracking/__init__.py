"""MLflow and Optuna mirrors of the tables."""

import os

# MLflow reads the first four while it is imported.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Eight processes that serve agents and judges; nobody has them here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
