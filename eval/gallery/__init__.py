"""Pictures of units: what each of them answers to, as a page, a picture and a table."""
