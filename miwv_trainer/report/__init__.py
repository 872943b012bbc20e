"""What people look at: tables, charts, and a page that says why each sample was selected."""
