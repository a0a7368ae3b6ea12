"""`python -m steadymap.tracking ui` opens the MLflow UI."""

from steadymap.tracking.ui import main

if __name__ == "__main__":
    main()
