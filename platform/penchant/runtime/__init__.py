"""The only room that imports Ray: it runs the other rooms' work on one machine or many."""
