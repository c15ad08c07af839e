"""The history of the store's schema, one module a step in `versions`. A step that was released is never changed."""
