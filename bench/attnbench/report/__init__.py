"""From records to a page: frame → views → HTML, Markdown, figures."""
