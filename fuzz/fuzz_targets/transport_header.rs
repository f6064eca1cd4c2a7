#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hawser_proxy::fuzzing::transport_header(input));
