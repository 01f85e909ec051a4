"""What people look at: metrics, figures, galleries and reports."""
