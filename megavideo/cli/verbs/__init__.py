"""One module per verb, each holding `VERB`; the room it calls is imported when it runs."""
