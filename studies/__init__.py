"""Studies: propose, admit, dispatch, record, promote."""
