"""From run folders to what people look at: tables, pictures, progress."""
