# Varnish as a proxy only: nothing is cached.
vcl 4.1;
backend default {
    @upstream@
}
sub vcl_recv {
    return (pass);
}
