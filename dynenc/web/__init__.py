"""The reader of .lat files for JavaScript: WebAssembly, made of the C of the native kernel."""
