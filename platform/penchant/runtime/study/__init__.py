"""The study: many fits of a YAML's rows over several data sets and seeds, and the pages that are made of what they left."""
