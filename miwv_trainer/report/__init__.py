"""Tables, charts and a page that show what a run selected, and why each sample was selected or not."""
