#!/usr/bin/env perl
# Asks with Perl: LWP::UserAgent with keep_alive if STYLE=lwp, otherwise HTTP::Tiny. Instead of threads there are
# processes, each of which sends its line of results to the first process.
use strict;
use warnings;
use HTTP::Tiny;
use JSON::PP;
use Time::HiRes qw(sleep time);

my ($url, $method, $size, undef, $threads, $seconds, $pause) = @ARGV;
my $body = $method eq 'GET' ? undef : join '', map { chr int rand 256 } 1 .. $size;
my $end = time + $seconds;

sub asks {
    if (($ENV{STYLE} // '') eq 'lwp') {
        require LWP::UserAgent;
        my $agent = LWP::UserAgent->new(keep_alive => 4, timeout => 30, ssl_opts => { SSL_ca_file => $ENV{CA_FILE} });
        return sub {
            my $request = HTTP::Request->new($method, $url, undef, $body);
            $request->content_length(length $body) if defined $body;
            my $answer = $agent->request($request);
            return ($answer->code, $answer->content, $answer->status_line);
        };
    }
    my $tiny = HTTP::Tiny->new(keep_alive => 1, timeout => 30, SSL_options => { SSL_ca_file => $ENV{CA_FILE} });
    return sub {
        my $answer = $tiny->request($method, $url, defined $body ? { content => $body } : {});
        return ($answer->{status}, $answer->{content}, $answer->{status} == 599 ? $answer->{content} : $answer->{reason});
    };
}

sub client {
    my ($ask, %told) = (asks(), tried => 0, lost => 0, errors => {}, longest_ms => 0);
    srand($$);
    sleep(rand() * $pause);
    while (time < $end) {
        my $began = time;
        my ($status, $said, $text) = eval { $ask->() };
        my $error = $@ || ($status != 200 ? "$status: $text" : defined $body && $said ne $body ? 'other bytes than were sent' : undef);
        my $took = (time - $began) * 1000;
        $told{tried}++;
        $told{longest_ms} = $took if $took > $told{longest_ms};
        if (defined $error) { $told{lost}++; $told{errors}{ substr $error, 0, 200 }++ }
        sleep($pause > 0 ? $pause : defined $error ? 0.05 : 0);
    }
    return encode_json(\%told) . "\n";
}

my @pipes = map {
    my $child = open(my $pipe, '-|') // die "fork: $!";
    if (!$child) { print client(); exit 0 }
    $pipe;
} 1 .. $threads;

my %sum = (tried => 0, lost => 0, errors => {}, longest_ms => 0);
for my $pipe (@pipes) {
    my $told = decode_json(<$pipe>);
    $sum{$_} += $told->{$_} for qw(tried lost);
    $sum{errors}{$_} += $told->{errors}{$_} for keys %{ $told->{errors} };
    $sum{longest_ms} = $told->{longest_ms} if $told->{longest_ms} > $sum{longest_ms};
}
print encode_json(\%sum), "\n";
