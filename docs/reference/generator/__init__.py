"""The reference, page by page, from the source: each module makes Markdown out of one kind of thing."""
