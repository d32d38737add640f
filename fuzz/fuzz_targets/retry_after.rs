#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tower_adobe_auth_fuzz::retry_after(input));
